"""Scoring in real time: the same features and the same models as the pipeline, behind an HTTP API.

There is one order of events, kept in PostgreSQL. `app` is the door and the only module that knows FastAPI, `detect` the
use case behind it, `scoring` the models in memory, `journal` the order of events. docs/how-to/serve.md says how to run
it.
"""
