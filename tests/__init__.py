"""Tests of cachefs, by level: unit, contract, property, concurrency, fault, mount, e2e, tidy."""
