"""`python -m deploy.grafana`: write the dashboards as the JSON that Grafana reads."""

from __future__ import annotations

from deploy.grafana.writing import FOLDER, texts

if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
