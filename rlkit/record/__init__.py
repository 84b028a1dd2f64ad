"""What a run leaves on disk and on the screen, and what it watches itself by."""
