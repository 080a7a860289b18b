"""What PACT keeps on disk: files that appear whole or not at all, and the cache of reference values.

Others use `cache.ReferenceCache` to look values up, `writer.CacheWriter` to fill one, `folder` for what lies beside it,
and `files` for JSON, tensors and locks.
"""

__all__ = ["cache", "files", "folder", "writer"]
