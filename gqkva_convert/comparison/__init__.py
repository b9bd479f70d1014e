"""Measured models side by side: tables and pictures of many folders."""
