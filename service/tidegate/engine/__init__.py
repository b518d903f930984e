"""From waiting chunks to committed steps: scheduler (pure policy), arena (slots of state), runner (onnxruntime), loop
(asyncio).
"""
