"""Measured models side by side: tables and plots of many folders."""
