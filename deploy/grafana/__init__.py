"""The dashboards: each module of a dashboard says what it shows, `panels` and `board` how that looks.

`python -m deploy.grafana` writes them to dashboards/. The classes are Grafana's own, published for its release 11.6.
"""
