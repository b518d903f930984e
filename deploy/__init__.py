"""What runs tidegate with everything around it: configurations, and in `deploy.grafana` what writes the dashboards."""
