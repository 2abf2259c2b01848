"""The codes of errors that more than one part reacts to."""

from __future__ import annotations

UNKNOWN_ANSWER = "unknown_answer"
"""An answer of another shape than the vendor documents."""

NO_SUCH_MODEL = "no_such_model"
"""The vendor has no model of this name."""

IMAGE_HOST_REFUSED = "image_host_refused"
"""An image link leads to a host that is not trusted."""

REQUEST_GONE = "request_gone"
"""The API does not know the request."""

QUEUE_TIMEOUT = "queue_timeout"
"""The request waited too long in the vendor's queue, which is no sign of an outage."""

CANCELLED = "request_cancelled"
"""The request was cancelled, by us or at the vendor."""

UNPAID = frozenset({QUEUE_TIMEOUT, CANCELLED})
"""After these errors the vendor charges nothing."""
