"""Stability's gRPC and gRPC-Web: a dialect whose answers are streams. This is its face to the front end."""
