//! Join tokens and the ids of service-account tokens: each counts once.

use std::ops::ControlFlow;
use std::time::SystemTime;

use super::Store;
use crate::store::codec::decode;
use crate::store::engine::{Engine, Table};
use crate::store::records::TokenRow;
use crate::store::{JtiUse, NewToken, Spent, SpentJti, StoreFuture, Tokens};

impl<E: Engine> Tokens for Store<E> {
    fn create(&self, token: NewToken) -> StoreFuture<'_, bool> {
        self.change(move |tx| {
            if tx.contains(Table::Token, &token.hash)? {
                return Ok(false);
            }
            tx.put(Table::Token, &token.hash, &TokenRow::from(&token))?;
            Ok(true)
        })
    }

    fn spend(&self, hash: [u8; 32], now: SystemTime) -> StoreFuture<'_, Spent> {
        self.change(move |tx| {
            let Some(mut row) = tx.get::<TokenRow>(Table::Token, &hash)? else {
                return Ok(Spent::Unknown);
            };
            if row.used_at.is_some() {
                return Ok(Spent::Used);
            }
            if row.expires_at <= now {
                return Ok(Spent::Expired);
            }
            row.used_at = Some(now);
            tx.put(Table::Token, &hash, &row)?;
            Ok(Spent::Good {
                agent_id: row.alias()?,
            })
        })
    }

    fn spend_jti(&self, use_: JtiUse) -> StoreFuture<'_, SpentJti> {
        self.change(
            move |tx| match tx.get::<JtiUse>(Table::Jti, use_.jti.as_bytes())? {
                None => {
                    tx.put(Table::Jti, use_.jti.as_bytes(), &use_)?;
                    Ok(SpentJti::First)
                }
                Some(earlier) if earlier.spki_hash == use_.spki_hash => {
                    Ok(SpentJti::SameKeyAgain(earlier))
                }
                Some(earlier) => Ok(SpentJti::OtherKey(earlier)),
            },
        )
    }

    fn rebind_jti(&self, jti: &str, from: [u8; 32], to: JtiUse) -> StoreFuture<'_, bool> {
        let jti = jti.to_owned();
        self.change(move |tx| {
            let earlier = tx.get::<JtiUse>(Table::Jti, jti.as_bytes())?;
            if earlier.is_none_or(|earlier| earlier.spki_hash != from) || to.jti != jti {
                return Ok(false);
            }
            tx.put(Table::Jti, jti.as_bytes(), &to)?;
            Ok(true)
        })
    }

    fn prune(&self, now: SystemTime) -> StoreFuture<'_, u64> {
        self.removal(move |tx| {
            let mut pruned = 0;
            for key in tx.durable_keys(Table::Token, |_, row| {
                ControlFlow::Continue(decode::<TokenRow>(row).is_ok_and(|row| row.expires_at < now))
            })? {
                tx.remove(Table::Token, &key);
                pruned += 1;
            }
            let ended = |row: &JtiUse| row.expires_at < now;
            for key in tx.durable_keys(Table::Jti, |_, row| {
                ControlFlow::Continue(decode::<JtiUse>(row).is_ok_and(|row| ended(&row)))
            })? {
                // It may have been tied to another key, with a later end, in this very group.
                if tx
                    .get::<JtiUse>(Table::Jti, &key)?
                    .is_some_and(|row| ended(&row))
                {
                    tx.remove(Table::Jti, &key);
                    pruned += 1;
                }
            }
            Ok(pruned)
        })
    }
}
