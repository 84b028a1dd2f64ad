"""Whether a text gives the same mathematical answer as a reference: answers are found, read to exact values, and compared."""
