//! SPIRE's own programs drive our authority: `spire-server`'s command line on the admin socket, verb by verb, and a
//! real `spire-agent` that attests, syncs, renews and serves.
//! Trusts nothing of ours for the verdict: what counts is what SPIRE's programs print and how they exit.

mod agent;
mod authorities;
mod domains;
mod verbs;

use mesh_tests::{
    spire::{Spire, Verbs, verb},
    world::World,
};

/// Verbs whose RPC is not served yet, each with arguments that SPIRE's program finds no fault with, and why.
/// A verb that works all of a sudden fails the test: it belongs into `spire/verbs.rs` then.
const NOT_SERVED: &[(&[&str], &str)] = &[(
    &["wit", "mint", "-spiffeID", "spiffe://dev.test/minted"],
    "WIT-SVIDs come later",
)];

/// Verbs that ask no server.
const ITS_OWN: &[&str] = &["run", "validate"];

#[tokio::test(flavor = "multi_thread")]
async fn each_verb_of_spires_command_line_is_served_or_stands_in_the_table() {
    let Some(spire) = Spire::find() else {
        return;
    };
    let world = World::start(|config| config).await;
    let server = spire.server(world.path("ca-admin.sock"));

    verbs::all(&server, &world);
    domains::all(&server, &world);
    authorities::all(&server, &world);
    verbs::agents(&server, &world);
    for verb in &server.used() {
        assert!(
            NOT_SERVED
                .iter()
                .all(|(arguments, _)| words(arguments) != *verb),
            "`{verb}` is tested: take it out of the table"
        );
    }
    for (arguments, reason) in NOT_SERVED {
        not_served(&server, arguments, reason);
    }

    let mut known = server.known();
    known.retain(|verb| !ITS_OWN.contains(&verb.as_str()));
    assert!(known.len() > 40, "only {known:?} were found in the help");
    assert_eq!(known, server.used(), "known to SPIRE, and looked at here");
}

fn not_served(server: &Verbs, arguments: &[&str], reason: &str) {
    let said = server.say(arguments);
    let expected = said.code == 1 && said.err.contains("code = Unimplemented");
    assert!(
        expected,
        "`{}` no longer answers Unimplemented ({reason}): {said:?}",
        words(arguments)
    );
    println!("not served: {} ({reason})", words(arguments));
}

fn words(arguments: &[&str]) -> String {
    verb(arguments)
}
