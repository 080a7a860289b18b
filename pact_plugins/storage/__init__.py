"""What PACT keeps on disk: files that appear whole or not at all, and the cache of reference values, by row.

Others use `cache.ReferenceCache` to look values up, `identity.Identity` to say which, `writer.CacheWriter` to fill a
`segment` of them, `folder` for what lies beside it, and `files` for JSON, tensors and locks.
"""

__all__ = ["cache", "files", "folder", "identity", "segment", "writer"]
