"""What all else rests on: no I/O. All but `periodic` and `repeated_event`, which need an event loop, is pure."""
