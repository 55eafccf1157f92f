"""The parts that run in the process of the test: no server, no socket of one."""
