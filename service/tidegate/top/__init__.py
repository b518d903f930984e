"""What `tidegate top` does: read ``/metrics`` again and again, and show what happened in between."""
