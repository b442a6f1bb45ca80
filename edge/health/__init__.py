"""How the node does and how that is said: state, reports, probes, throttle, systemd, Prometheus."""
