"""The command line's verbs, one module each; none is imported before it is asked for."""
