"""The peers' applications, each started as a process of its own with the port as its argument."""
