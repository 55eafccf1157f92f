"""The tests; each reads as a sentence of the specification."""
