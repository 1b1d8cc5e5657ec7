//! Connections for reads that run at once, on the thread that asks.
//!
//! Such a read takes some microseconds out of memory that is mapped, and never waits for a lock:
//! SQLite says that it is locked, and the read is tried again later.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::sql::failure;
use super::{MMAP_BYTES, READER_PATIENCE};

/// Connections: as many as threads may read side by side. Nobody holds one across an await.
const CONNECTIONS: usize = 4;
/// Compiled statements that a connection keeps.
const STATEMENTS: usize = 64;

/// Connections that only read.
pub(super) struct Readers {
    places: Semaphore,
    // Held to take one out and to put it back, no longer.
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    /// Opens them all: later the file may be in trouble, and reads go on all the same.
    pub(super) fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let idle: Result<Vec<_>, _> = (0..CONNECTIONS).map(|_| connect(path)).collect();
        Ok(Self {
            places: Semaphore::new(CONNECTIONS),
            idle: Mutex::new(idle.map_err(failure)?),
        })
    }

    /// Runs `query` on a connection that nobody uses.
    pub(super) async fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let place = tokio::time::timeout(READER_PATIENCE, self.places.acquire());
        let place = place.await.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let _place = place.map_err(|_| sqlx::Error::PoolClosed)?;
        let connection = self.lock().pop().ok_or(sqlx::Error::PoolClosed)?;
        let result = query(&connection);
        let mut idle = self.lock();
        // Asked under the lock: what is put back after `close` would stay open.
        if !self.places.is_closed() {
            idle.push(connection);
        }
        drop(idle);
        result
    }

    /// Closes what is idle now and the rest after its read; later reads get an error.
    pub(super) fn close(&self) {
        self.places.close();
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // The thread that asks has other things to do than to wait for a lock.
    connection.busy_timeout(Duration::ZERO)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update_and_check(None, "mmap_size", MMAP_BYTES, |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}
