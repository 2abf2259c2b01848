"""Finds and keeps the limit of an account: requests in flight, requests per minute, or both."""
