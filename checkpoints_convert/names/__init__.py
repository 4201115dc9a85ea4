"""Which array of a public checkpoint each parameter of our networks is, and back."""
