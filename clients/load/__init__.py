"""Load by the record: request traces with the statistics of services in production, sent in an open loop."""
