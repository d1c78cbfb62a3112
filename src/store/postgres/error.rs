//! What a database says when something fails, and what follows from it.

use deadpool_postgres::PoolError;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody answers, or whoever does lets us not in.
    #[error("the database {database} cannot be reached: {reason}")]
    Unreachable {
        /// Its hosts and name.
        database: String,
        /// What the connection came to.
        reason: String,
    },
    /// The authorities that vouch for it cannot be had.
    #[error("store.url: TLS to the database cannot be set up")]
    Tls(#[source] std::io::Error),
    /// It cannot do what is asked of it.
    #[error("the database {database} is PostgreSQL {found}; it has to be {oldest} or newer")]
    TooOld {
        /// Its hosts and name.
        database: String,
        /// Its version.
        found: String,
        /// The first version that will do.
        oldest: u32,
    },
    /// It is a standby: nothing can be written there.
    #[error(
        "the database {database} is in recovery (a standby): name the primary, or all servers and \
         `target_session_attrs=read-write` in store.url"
    )]
    InRecovery {
        /// Its hosts and name.
        database: String,
    },
    /// What it acknowledges may be lost.
    #[error(
        "the database {database} has {setting} = {found}, so a delivery that was acknowledged could be lost: \
         set it to `on` for the server, or for this user (ALTER ROLE … SET {setting} = on)"
    )]
    NotDurable {
        /// Its hosts and name.
        database: String,
        /// The setting.
        setting: &'static str,
        /// Its value.
        found: String,
    },
    /// The user may not do what a gateway has to.
    #[error(
        "the user {user} lacks rights in the database {database}: {what} (once, by its owner: CREATE SCHEMA \
         countersign AUTHORIZATION {user})"
    )]
    Rights {
        /// Its hosts and name.
        database: String,
        /// Who we are there.
        user: String,
        /// What it may not.
        what: String,
    },
    /// The tables were made by a newer version.
    #[error(
        "the tables in {database} have format {found}, and this version knows formats up to {known}: run the \
         version that made them, or a later one"
    )]
    Newer {
        /// Its hosts and name.
        database: String,
        /// Their format.
        found: i32,
        /// The newest format that this version reads.
        known: i32,
    },
    /// It is not known to hold all that it is to hold.
    #[error(
        "the database {database} is being filled by `countersign store copy`, which has not come to its end: run that \
         again, or drop the schema `countersign`"
    )]
    BeingFilled {
        /// Its hosts and name.
        database: String,
    },
    /// Anything else that it says.
    #[error("the database {database} cannot be used: {reason}")]
    Database {
        /// Its hosts and name.
        database: String,
        /// What it says.
        reason: String,
    },
}

/// How something that was asked of the database failed.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// There is no connection, or the server is not what it was: nothing that was asked has to have been done, nor not.
    Gone(String),
    /// It took too long, or there is no room for one more.
    Busy(String),
    /// Its disk is full.
    DiskFull,
    /// Two transactions were in each other's way: this one is to be tried again.
    Again(String),
    /// What was asked cannot be done, whoever asks.
    Own(String),
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Gone(reason) => Self::Unreachable(reason),
            Trouble::Busy(reason) => {
                tracing::debug!(reason, "the database is busy");
                Self::Busy
            }
            Trouble::Again(_) => Self::Busy,
            Trouble::DiskFull => Self::DiskFull,
            Trouble::Own(reason) => Self::Read(reason),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let reason = explain(&error);
        let Some(code) = error.code() else { return Self::Gone(reason) };
        match *code {
            SqlState::DISK_FULL => Self::DiskFull,
            SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => Self::Again(reason),
            // Of the deadlines that this store sets.
            SqlState::QUERY_CANCELED | SqlState::LOCK_NOT_AVAILABLE => Self::Busy(reason),
            _ => match code.code().get(..2) {
                // Data that it does not take, a constraint, a limit of the program's.
                Some("22" | "23" | "54") => Self::Own(reason),
                _ => Self::Gone(reason),
            },
        }
    }
}

impl From<PoolError> for Trouble {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::from(error),
            PoolError::Timeout(deadpool_postgres::TimeoutType::Wait) => {
                Self::Busy("all connections are in use".to_owned())
            }
            PoolError::Timeout(_) => Self::Gone("no connection in time".to_owned()),
            PoolError::PostCreateHook(error) => Self::Gone(error.to_string()),
            PoolError::Closed | PoolError::NoRuntimeSpecified => Self::Gone(error.to_string()),
        }
    }
}

/// What it says, with what it says about that.
pub(in crate::store) fn explain(error: &Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} ({})", said.message(), said.code().code());
    }
    crate::causes::chain(error)
}
