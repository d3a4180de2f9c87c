"""Repositories of the Hub: a server's answers, what is downloaded and sent, the catalogue of published parts."""
