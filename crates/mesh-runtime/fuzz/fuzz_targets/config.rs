//! Any text as a configuration file: refused with places inside the text, or the same configuration when written and read again.
//! Trusts nothing; libFuzzer makes the text.
//! Never looks at the words of a refusal beyond printing them.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use mesh_runtime::config::{ByteSize, Config, HumanDuration, Sources, load};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Demo {
    name: String,
    limit: Option<u16>,
    on: bool,
    pause: HumanDuration,
    size: ByteSize,
    labels: BTreeMap<String, String>,
    ways: Vec<Way>,
    inner: Inner,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Inner {
    numbers: Vec<i32>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Way {
    None,
    Path(String),
    Pair { left: u8, right: u8 },
}

impl Config for Demo {
    const KIND: &'static str = "DemoConfig";
    const ENV_PREFIX: &'static str = "DEMO";
}

fuzz_target!(|text: &str| {
    let file = format!("apiVersion: config.finial.dev/v1\nkind: DemoConfig\n{text}");
    match load::<Demo>(&Sources::new().text("fuzz.yaml", &file)) {
        Err(errors) => {
            assert!(!errors.problems().is_empty());
            let shown = errors.to_string();
            assert!(!shown.contains('\u{1b}'), "a control character is printed");
            drop(errors.to_json());
        }
        Ok(loaded) => {
            let shown = loaded.show(true);
            let again = load::<Demo>(&Sources::new().text("shown.yaml", &shown))
                .unwrap_or_else(|e| panic!("{shown}\n{e}"));
            let plain = |demo: &Demo| serde_json::to_value(demo).expect("a configuration is JSON");
            assert_eq!(plain(&again.value), plain(&loaded.value), "{shown}");
        }
    }
});
