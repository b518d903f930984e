"""How much one client may ask for, and how much is kept of it: every bound that is no setting.

Bounds keep two promises: no single request holds the event loop for more than some 5 ms, and what a client leaves
behind is bounded in bytes. docs/limits.md shows all of them beside the bounds that are settings (`config.py`); a test
holds page and module to each other, and each bound is reached over its interface in tests/service/test_limits.py.
"""

from __future__ import annotations

# ---- what a request may hold

MAX_SEQUENCES = 4096
"""Sequences of one prediction: 16 full runs, some 0.1 s of work. A longer list is several requests."""

MAX_STEPS = 262_144
"""Steps of one request, all sequences together: 64 for each of `MAX_SEQUENCES`, some seconds of work. A longer sequence
is stepped in a session, chunk by chunk."""

QUEUE_SHARE = 32
"""One request has at most this part of `--max-queue` waiting, the 32nd: what else it holds waits inside it, so that no
other request is refused, or waits for long, for its sake."""

SLICE_SECONDS = 0.001
"""Seconds that a request's long work may take before others get their turn: a fifth of what is promised, for others do
the same."""

LARGE_JSON_BYTES = 16 * 1024
"""Bytes of a body that is read at once: that takes up to 3 ms. What is longer is read in slices."""

LARGE_REPLY_BYTES = 16 * 1024
"""Bytes of a prediction's arrays that are written at once: 2,000 candidates, some 2 ms. More is written in slices."""

MAX_JSON_ITEMS = 32_768
"""Objects, strings and lists in a large body: three for each of `MAX_SEQUENCES`, and more. Numbers in lists, and rows
of equally many numbers, do not count."""

MAX_JSON_DEPTH = 64
"""Objects and lists within each other in a large body."""

LARGE_MESSAGE_BYTES = 16 * 1024
"""Bytes of a protobuf message that is parsed without a look at how many fields it has."""

MAX_MESSAGE_FIELDS = 20_480
"""Fields of a larger one, and of large messages in it: five for each of `MAX_SEQUENCES`. Packed numbers are one; the
names of an `Attach` have room of their own. To count them takes up to 4 ms, and so does to parse them."""

MAX_INFERENCE_FIELDS = 4096
"""Likewise of an inference request of the Open Inference Protocol: a map's entry takes 0.5 µs to parse."""

MAX_CANDIDATES = 4096
"""Candidates that one step tells: to make and to write them takes some 3 ms."""

MAX_STOP_STRINGS = 16
"""Stop strings of one generation. Other servers take 4; each token is matched against all."""

MAX_STOP_LENGTH = 64
"""Characters of a stop string: so much text may be withheld while it may still become one."""

MAX_TOKENS = 100_000
"""Tokens of one generation: its transcript is kept, and stored, until the session's next step."""

MAX_TENSORS = 64
"""Inputs, and outputs, that one inference request of the Open Inference Protocol may name: no model has more."""

MAX_PARAMETERS = 64
"""Parameters of such a request, and of each of its tensors: seven are known."""

# ---- names

MAX_NAME_LENGTH = 128
"""Characters of an id, a checkpoint's name, a model's name and a page token. The server makes none longer."""

MAX_SEQUENCE_ID_LENGTH = 1024
"""Characters of a sequence's id in the Open Inference Protocol; long ones are kept as their SHA-256."""

MAX_MESSAGE_LENGTH = 2000
"""Characters of an error's message: it may quote what the client sent."""

# ---- lists

DEFAULT_PAGE = 100
"""Entries of a page where the client does not say."""

MAX_PAGE = 1000
"""Entries of a page."""

MAX_FORKS = 1000
"""Sessions that one `fork` opens."""

MAX_CHECKPOINTS = 8
"""Checkpoints of a session; the oldest makes room for the next."""

# ---- streams

MAX_IN_FLIGHT = 32
"""Messages of a stream of steps, or frames of a WebSocket, that wait for their answers; then reading stops."""

MAX_INFERENCES_IN_FLIGHT = 256
"""Requests of an inference stream likewise: each carries one step of one sequence, not steps of many sessions."""

MAX_LANES = 65_536
"""Lanes of one columnar stream."""

# ---- the store of durable sessions

MAX_STORE_QUESTIONS = 4
"""Calls other than writes that are with the store at once: a write waits behind no more."""

MAX_STORE_SUMMARIES = 256
"""Sessions whose summaries one such call reads."""

MAX_STORE_ENTRIES = 32
"""Sessions whose whole records one such call reads: their states may be long."""

MAX_CHOSEN_A_SWEEP = 1024
"""Ephemeral sessions under ids of their clients' choice that are looked up each second: a durable one may have come."""

MAX_STORE_WRITES = 1024
"""Writes that go to the store as one group."""

MAX_STORE_WRITE_BYTES = 16 << 20
"""Bytes of such a group; a longer record goes alone."""

MAX_LOOKED_AT = 128
"""Stored sessions that a list or a sweep looks at in one go: some 2 ms. A list goes on with the next."""

MAX_LOOKS = 256
"""Such looks of one sweep; what is due then waits for the next one, a second later."""

MAX_SUMMARY_BYTES = 64 * 1024
"""Bytes of a stored session's summary: more than all of its fields may take."""

MAX_SESSION_LABELS = 32
"""Labels of a stored session."""

MAX_SESSION_LABEL_LENGTH = 128
"""Characters of such a label's name, and of its value."""

# ---- what is kept

MAX_SEEN_ENDINGS = 65_536
"""Durable sessions that this process saw end, remembered for an hour so that it ends none twice: some 16 MB."""

MAX_ENDINGS = 100_000
"""Ended sessions whose reason is remembered, for an hour at most: some 25 MB with ids of 128 characters."""

MAX_LAST_REPLY_BYTES = 16 << 20
"""Bytes of the last replies of ephemeral sequences that ended, kept for a repeat of the last request, for an hour."""

CHECKPOINT_BYTES = 512
"""What a checkpoint of an ephemeral session takes of `--arena-mb` beside its state."""

SMALL_REPLY_BYTES = 1024
"""A last reply that takes no more does not count against `--replies-mb`: it is part of what each session takes."""

MAX_HEADS = 8192
"""Heads of inference requests that are remembered, each of at most `MAX_HEAD_BYTES`: 8 MiB and what they mean."""

MAX_HEAD_BYTES = 1024
"""Bytes of a remembered head: a request's parameters and the names of its tensors. A longer one is read anew."""

MAX_DIGESTS = 8192
"""Digests of single steps that are remembered: those of a vocabulary come again and again. Some 300 bytes each."""

MAX_TIMINGS = 16
"""Pieces of work of one request that its trace tells: a message of a thousand lanes is not to become 3,000 spans."""

# ---- what a bundle may hold

MAX_MANIFEST_BYTES = 1 << 20
"""Bytes of a manifest."""

MAX_GRAPH_BYTES = (1 << 31) - 1
"""Bytes of a graph: a message of Protocol buffers has no more, and a graph is one."""

MAX_CODEC_BYTES = 64 << 20
"""Bytes of all files of a bundle but the graph and the manifest together."""

MAX_BUNDLE_FILES = 64
"""Files that a manifest may list."""

MAX_GRAPH_FIELDS = 1_000_000
"""Fields of a graph's file: a graph of 100,000 nodes has as many, and to look at each takes some 2 µs."""

MAX_GRAPH_DEPTH = 100
"""Messages within each other in a graph's file: readers of Protocol buffers go no deeper."""

MAX_MODEL_TENSORS = 1024
"""Inputs, outputs and states of a model, each."""

MAX_SETTING_ELEMENTS = 16_384
"""Numbers of one setting of a model: a vector of a speaker has some hundreds."""

MAX_AXES = 16
"""Axes of a tensor of a model."""

MAX_LABEL_LENGTH = 1024
"""Characters of the name of a tensor or of an axis."""

MAX_TENSOR_ELEMENTS = 1 << 27
"""Elements of a tensor of a model, of one row and one step: half a gigabyte in fp32, beyond any step or state."""

MAX_STATE_BYTES = 1 << 30
"""Bytes of all states of one session. That one session fits the arena is asked besides, as the server is set up."""
