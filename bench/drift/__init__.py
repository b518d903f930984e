"""How well the control charts of the ready-made bundles work: see ``__main__``."""
