"""Several processes behind one port of each interface: who they are, who starts them, whose a session is."""
