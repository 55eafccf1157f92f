"""What the tests share: servers, clients, forgers, proxies, a systemd manager, a browser."""
