"""Pure code that all else rests on: no I/O, no clock of its own."""
