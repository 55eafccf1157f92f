"""What operators do: systemd, restarts, upgrades, proxies, the demo."""
