"""The handlers of the pages, and of what operators and load balancers ask."""
