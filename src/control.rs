//! Operating a fleet: what people do, from outside, to what runs and to what came to a bad end.
//!
//! - [`dead`]: looks at dead letters, has their jobs run again, throws them away.
//!
//! All of it is generic over the [`Transport`](crate::transport::Transport). Who asked, and how the answer is printed,
//! is not known here.

pub mod dead;
