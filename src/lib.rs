//! Synthex runs commands on a fleet of machines, fed by RabbitMQ.

pub mod message;

pub mod flow;

pub mod supervise;

pub mod transport;

pub mod executor;

pub mod config;
