"""The Python client: requests, answers, errors, over gRPC and HTTP, blocking and asyncio."""
