"""The browser client and the two pages, in a real Chromium."""
