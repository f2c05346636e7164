//! An event-driven vCPU loop.
