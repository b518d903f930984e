"""The dashboards: a module for each says what it shows, `panels` and `board` how it looks.

`python -m deploy.grafana` writes them to dashboards/. The classes are Grafana's own, published for its release 11.6.
"""
