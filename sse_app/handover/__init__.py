"""Handing live streams to the next process: what is said of them, how it travels, and both ends of it."""
