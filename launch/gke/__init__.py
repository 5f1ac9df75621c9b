"""Kubernetes on Google Cloud."""
