//! Waiting for what real processes do: polls until true, never sleeps a fixed time.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Whether `condition` became true within `limit`.
pub async fn within(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match timeout_at(deadline, condition()).await {
            Ok(true) => return true,
            Ok(false) if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
            Ok(false) | Err(_) => return false,
        }
    }
}
