"""Groups of workers, in this process or on Ray, and the weights that travel between them."""
