"""The network: loading, the packed forward pass with its output layer, adapters, export, references, and weights on the wire."""
