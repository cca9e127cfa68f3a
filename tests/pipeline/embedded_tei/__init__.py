"""Tests of the embedded TEI against real server processes."""
