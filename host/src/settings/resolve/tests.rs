use std::{ffi::OsString, fs, net::IpAddr};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::settings::{CorsOrigins, LogFormat};

/// A machine with directories of its own.
struct Machine {
    dirs: TempDir,
}

impl Machine {
    fn new() -> Self {
        let dirs = TempDir::new().unwrap();
        fs::create_dir_all(dirs.path().join("work")).unwrap();
        fs::create_dir_all(dirs.path().join("home/.golem/provider")).unwrap();
        Self { dirs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dirs.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn resolve(&self, environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        self.resolve_with(environment, &Overrides::default())
    }

    fn resolve_with(
        &self,
        environment: &[(&str, &str)],
        overrides: &Overrides,
    ) -> Result<Settings, SettingsError> {
        let inputs = Inputs {
            environment: environment
                .iter()
                .map(|(name, value)| (OsString::from(name), OsString::from(value)))
                .collect(),
            working_dir: Some(self.path("work")),
            home_dir: Some(self.path("home")),
        };
        resolve(&inputs, overrides)
    }

    fn problems(&self, environment: &[(&str, &str)]) -> Vec<String> {
        self.resolve(environment).unwrap_err().problems
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn without_any_key_the_documented_defaults_hold() {
    let machine = Machine::new();
    let settings = machine.resolve(&[]).unwrap();
    assert_eq!(settings.environment, Environment::Production);
    assert_eq!(settings.data_dir, machine.path("home/.golem/provider"));
    assert_eq!(settings.plugin_dir, machine.path("home/.golem/provider/plugins"));
    assert_eq!(settings.wallet.key_dir, machine.path("home/.golem/provider/keys"));
    assert_eq!(settings.api.bind, "0.0.0.0:7466".parse().unwrap());
    assert_eq!(settings.api.rate_limit_per_minute, 100);
    assert_eq!(settings.api.cors_origins, CorsOrigins::Any);
    assert_eq!(settings.ports.range, 50800..50900);
    assert_eq!(settings.vms.default_image, "24.04");
    assert_eq!((settings.vms.max_vms, settings.vms.stop_on_exit), (10, false));
    assert_eq!(settings.vms.launch_timeout, Duration::from_secs(300));
    let limits = &settings.resources;
    assert_eq!((limits.min_cpu_cores, limits.min_memory_gb, limits.min_storage_gb), (1, 1, 10));
    assert_eq!(
        (
            limits.cpu_threshold_percent,
            limits.memory_threshold_percent,
            limits.storage_threshold_percent
        ),
        (90, 85, 90)
    );
    assert_eq!(settings.log.format, LogFormat::Human);
}

#[test]
fn the_environment_wins_over_the_working_directory_and_that_over_the_data_directory() {
    let machine = Machine::new();
    machine.write("work/.env", "GOLEM_PROVIDER_NAME=work\nGOLEM_PROVIDER_PORT=2222\n");
    machine.write(
        "home/.golem/provider/.env",
        "GOLEM_PROVIDER_NAME=data\nGOLEM_PROVIDER_PORT=3333\nGOLEM_PROVIDER_MAX_VMS=3\n",
    );
    let settings = machine.resolve(&[("GOLEM_PROVIDER_NAME", "environment")]).unwrap();
    assert_eq!(
        (settings.identity.name.as_str(), settings.api.bind.port(), settings.vms.max_vms),
        ("environment", 2222, 3)
    );
    let origin = |name: &str| {
        settings.effective.iter().find(|key| key.key == name).unwrap().origin.to_string()
    };
    assert_eq!(origin("GOLEM_PROVIDER_NAME"), "environment");
    assert_eq!(origin("GOLEM_PROVIDER_PORT"), machine.path("work/.env").display().to_string());
    assert_eq!(
        origin("GOLEM_PROVIDER_MAX_VMS"),
        machine.path("home/.golem/provider/.env").display().to_string()
    );
    assert_eq!(origin("GOLEM_PROVIDER_HOST"), "default");
}

#[test]
fn the_published_example_file_is_accepted() {
    let machine = Machine::new();
    machine.write(
        "work/.env",
        r#"# Provider Settings
GOLEM_PROVIDER_ID="your-provider-id"
GOLEM_PROVIDER_NAME="your-provider-name"
GOLEM_PROVIDER_COUNTRY="SE"

# Resource Limits
GOLEM_PROVIDER_MAX_VMS=10
GOLEM_PROVIDER_MIN_CPU_CORES=1
GOLEM_PROVIDER_MIN_MEMORY_GB=1
GOLEM_PROVIDER_MIN_STORAGE_GB=10

# Port Verification Settings
GOLEM_PROVIDER_PORT=7466 # Default: 7466
GOLEM_PROVIDER_PORT_CHECK_SERVERS=[
"https://ports1.golem.network",
"https://ports2.golem.network"
]

# Network Settings
GOLEM_PROVIDER_PORT_RANGE_START=50800 # Default: 50800
GOLEM_PROVIDER_PORT_RANGE_END=50900 # Default: 50900
GOLEM_PROVIDER_PUBLIC_IP="auto"

# Discovery Settings
GOLEM_PROVIDER_DISCOVERY_URL="http://discovery.golem.network:9001"
GOLEM_PROVIDER_ADVERTISEMENT_INTERVAL=240
GOLEM_PROVIDER_POLYGON_RPC_URL=
"#,
    );
    let settings = machine.resolve(&[]).unwrap();
    assert_eq!(settings.identity.country.as_deref(), Some("SE"));
    assert!(
        settings.warnings.iter().any(|warning| warning.contains("GOLEM_PROVIDER_ID")),
        "{:?}",
        settings.warnings
    );
}

#[test]
fn development_listens_on_loopback_unless_told_otherwise() {
    let machine = Machine::new();
    let dev = Overrides { development: true, ..Overrides::default() };
    let settings = machine.resolve_with(&[("GOLEM_ENVIRONMENT", "production")], &dev).unwrap();
    assert_eq!(settings.environment, Environment::Development);
    assert_eq!((settings.api.bind.ip(), settings.ports.bind), (ip("127.0.0.1"), ip("127.0.0.1")));
    assert_eq!(settings.identity.public_ip, Some(ip("127.0.0.1")));

    let settings = machine
        .resolve(&[("GOLEM_ENVIRONMENT", "development"), ("GOLEM_PROVIDER_HOST", "127.0.0.9")])
        .unwrap();
    assert_eq!((settings.api.bind.ip(), settings.ports.bind), (ip("127.0.0.9"), ip("127.0.0.9")));
    assert_eq!(settings.identity.public_ip, Some(ip("127.0.0.9")));
}

#[test]
fn the_command_line_decides_whether_vms_end_with_the_provider() {
    let machine = Machine::new();
    for (set, said, stops) in
        [("true", Some(false), false), ("false", Some(true), true), ("true", None, true)]
    {
        let overrides = Overrides { stop_vms_on_exit: said, ..Overrides::default() };
        let settings =
            machine.resolve_with(&[("GOLEM_PROVIDER_STOP_VMS_ON_EXIT", set)], &overrides).unwrap();
        assert_eq!(settings.vms.stop_on_exit, stops);
    }
}

#[test]
fn a_misspelt_key_is_refused_with_the_closest_known_name() {
    let machine = Machine::new();
    for (wrong, meant) in [
        ("GOLEM_PROVIDER_PROT", "GOLEM_PROVIDER_PORT"),
        ("GOLEM_PROVIDER_MAXVMS", "GOLEM_PROVIDER_MAX_VMS"),
        ("GOLEM_PROVIDER_RATE_LIMIT_PER_MINUTES", "GOLEM_PROVIDER_RATE_LIMIT_PER_MINUTE"),
        ("GOLEM_PROVIDER_port", "GOLEM_PROVIDER_PORT"),
        ("GOLEM_PROVIDER_PLUGINDIR", "GOLEM_PROVIDER_PLUGIN_DIR"),
        ("GOLEM_ENVIROMENT", "GOLEM_ENVIRONMENT"),
    ] {
        let problems = machine.problems(&[(wrong, "10")]);
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].contains(wrong) && problems[0].contains(&format!("did you mean {meant}?")),
            "{problems:?}"
        );
    }
    let problems = machine.problems(&[("GOLEM_PROVIDER_XYZZY_QUUX_FROB", "10")]);
    assert!(!problems[0].contains("did you mean"), "{problems:?}");
}

#[test]
fn keys_of_other_programs_are_left_alone() {
    let machine = Machine::new();
    machine
        .resolve(&[("GOLEM_DISCOVERY_PORT", "x"), ("GOLEM_REQUESTOR_NAME", "y"), ("PATH", "/bin")])
        .unwrap();
}

#[test]
fn all_problems_are_told_at_once_each_with_key_value_and_what_is_allowed() {
    let machine = Machine::new();
    machine.write("work/.env", "GOLEM_PROVIDER_MAX_VMS=many\nthis is no setting\n");
    let problems = machine.problems(&[
        ("GOLEM_PROVIDER_PORT", "70000"),
        ("GOLEM_ENVIRONMENT", "staging"),
        ("GOLEM_PROVIDER_STREAM_MONITOR_ENABLED", "perhaps"),
        ("GOLEM_PROVIDER_PORT_CHECK_SERVERS", "[\"ftp://x\"]"),
        ("GOLEM_PROVIDER_NOPE_NOPE_NOPE", "1"),
    ]);
    let all = problems.join("\n");
    for expected in [
        "GOLEM_PROVIDER_PORT is `70000` (environment); allowed is a whole number from 1 to 65535",
        "GOLEM_ENVIRONMENT is `staging` (environment); allowed is one of production, development",
        "GOLEM_PROVIDER_STREAM_MONITOR_ENABLED is `perhaps`",
        "GOLEM_PROVIDER_PORT_CHECK_SERVERS is",
        "GOLEM_PROVIDER_NOPE_NOPE_NOPE",
        "GOLEM_PROVIDER_MAX_VMS is `many`",
        ".env: line 2 is not KEY=VALUE",
    ] {
        assert!(all.contains(expected), "{expected} is not in\n{all}");
    }
    assert_eq!(problems.len(), 7, "{all}");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let machine = Machine::new();
    let problems = machine.problems(&[("GOLEM_PROVIDER_PORT_RANGE_START", "60000")]);
    assert!(problems[0].contains("60000") && problems[0].contains("50900"), "{problems:?}");
    let problems = machine.problems(&[("GOLEM_PROVIDER_PORT", "50850")]);
    assert!(problems[0].contains("lies among the ports for SSH"), "{problems:?}");
    machine.resolve(&[("GOLEM_PROVIDER_PORT", "50900")]).unwrap();
}

#[test]
fn a_secret_is_in_no_error_and_in_no_printed_form() {
    let machine = Machine::new();
    let name = "GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY";
    let wrong = "0xdeadbeefdeadbeef";
    assert!(!machine.problems(&[(name, wrong)]).join(" ").contains("deadbeef"));

    let right = "ab".repeat(32);
    let settings =
        machine.resolve(&[(name, &right), ("GOLEM_PROVIDER_PLUGIN_CLOUD_TOKEN", &right)]).unwrap();
    assert_eq!(settings.wallet.private_key.as_ref().unwrap().expose(), right);
    assert!(!format!("{:?}", settings.wallet).contains(&right));
    assert!(!serde_json::to_string(&settings.effective).unwrap().contains(&right));
}

#[test]
fn settings_of_plugins_are_passed_on_by_plugin_and_key() {
    let machine = Machine::new();
    let settings = machine
        .resolve(&[
            ("GOLEM_PROVIDER_PLUGIN_DIR", "/opt/plugins"),
            ("GOLEM_PROVIDER_PLUGIN_QEMU_ACCELERATOR", "tcg"),
            ("GOLEM_PROVIDER_PLUGIN_QEMU_BOOT_TIMEOUT_SECONDS", "90"),
            ("GOLEM_PROVIDER_MULTIPASS_BINARY_PATH", "/snap/bin/multipass"),
        ])
        .unwrap();
    assert_eq!(settings.plugin_dir, Path::new("/opt/plugins"));
    assert_eq!(settings.plugins["qemu"]["accelerator"], "tcg");
    assert_eq!(settings.plugins["qemu"]["boot-timeout-seconds"], "90");
    assert_eq!(settings.plugins["multipass"]["binary-path"], "/snap/bin/multipass");
    assert_eq!(settings.plugins.len(), 2);
}

#[test]
fn paths_are_made_absolute() {
    let machine = Machine::new();
    let settings = machine
        .resolve(&[("GOLEM_PROVIDER_DATA_DIR", "./data"), ("GOLEM_PROVIDER_VM_DATA_DIR", "~/vms")])
        .unwrap();
    assert_eq!(settings.data_dir, machine.path("work/data"));
    assert_eq!(settings.vm_data_dir, Some(machine.path("home/vms")));
}

#[test]
fn the_file_in_the_data_directory_cannot_move_it() {
    let machine = Machine::new();
    machine.write("home/.golem/provider/.env", "GOLEM_PROVIDER_DATA_DIR=/elsewhere\n");
    assert!(machine.problems(&[])[0].contains("GOLEM_PROVIDER_DATA_DIR"));
}

#[test]
fn lists_are_read_as_json_and_between_commas() {
    let machine = Machine::new();
    for text in [r#"["10.0.0.0/8", "127.0.0.1"]"#, "10.0.0.0/8, 127.0.0.1"] {
        let settings = machine.resolve(&[("GOLEM_PROVIDER_TRUSTED_PROXIES", text)]).unwrap();
        assert_eq!(settings.api.trusted_proxies.show(), "10.0.0.0/8,127.0.0.1/32");
    }
    let settings =
        machine.resolve(&[("GOLEM_PROVIDER_CORS_ORIGINS", "https://a.example")]).unwrap();
    assert_eq!(settings.api.cors_origins, CorsOrigins::Only(vec!["https://a.example".into()]));
    assert!(machine.resolve(&[("GOLEM_PROVIDER_CORS_ORIGINS", "https://a.example/")]).is_err());
}

#[test]
fn prices_are_exact_and_the_price_of_glm_is_asked_for_where_that_is_wanted() {
    let machine = Machine::new();
    let pricing = |keys: &[(&str, &str)]| machine.resolve(keys).unwrap().pricing;
    let by_default = pricing(&[]);
    assert_eq!(by_default.usd.per_gb_storage, "0.1".parse().unwrap());
    let source = by_default.source.unwrap();
    assert_eq!(source.url, "https://api.coingecko.com/api/v3");
    assert_eq!(source.ids, ["golem", "golem-network-tokens"]);
    assert_eq!(pricing(&[("GOLEM_PROVIDER_PRICING_UPDATE_ENABLED", "false")]).source, None);
    assert_eq!(pricing(&[("GOLEM_PROVIDER_COINGECKO_IDS", "[]")]).source, None);

    let development = ("GOLEM_ENVIRONMENT", "development");
    assert_eq!(pricing(&[development]).source, None);
    let url = ("GOLEM_PROVIDER_COINGECKO_API_URL", "http://127.0.0.1:1");
    assert_eq!(pricing(&[development, url]).source.unwrap().url, "http://127.0.0.1:1");

    let price = |text| machine.resolve(&[("GOLEM_PROVIDER_PRICE_USD_PER_CORE_MONTH", text)]);
    assert_eq!(price("0.000000001").unwrap().pricing.usd.per_core.to_string(), "0.000000001");
    for wrong in ["-1", "1e3", "+1", "1_000", "NaN", "0.0000000001", "1000000.1", "."] {
        assert!(price(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn rust_log_is_read_where_the_own_key_is_not_set() {
    let machine = Machine::new();
    assert_eq!(machine.resolve(&[("RUST_LOG", "warn")]).unwrap().log.filter, "warn");
    let both = machine.resolve(&[("RUST_LOG", "warn"), ("GOLEM_PROVIDER_LOG", "debug")]).unwrap();
    assert_eq!(both.log.filter, "debug");
    assert!(machine.problems(&[("RUST_LOG", "a=b=c")])[0].starts_with("RUST_LOG is"));
}

proptest! {
    #[test]
    fn no_file_and_no_value_makes_it_panic(
        file in "(GOLEM_PROVIDER_[A-Z]{1,4}=[ -~]{0,20}\n|[\\PC\n]{0,40}){0,4}",
        key in 0..keys::ALL.len(),
        value in "[^\0]{0,30}",
    ) {
        let machine = Machine::new();
        machine.write("work/.env", &file);
        let _ = machine.resolve(&[(keys::ALL[key].description().name, &value)]);
    }
}

#[test]
fn ports_are_verified_in_production_unless_the_operator_says_otherwise() {
    let machine = Machine::new();
    let settings = machine.resolve(&[]).unwrap().reachability;
    assert_eq!(settings.verification, Verification::Wanted);
    assert_eq!(settings.quorum, PortQuorum::Majority);
    assert_eq!(settings.unverified_ports, crate::settings::UnverifiedPorts::Warn);
    assert_eq!((settings.servers.len(), settings.public_ip_sources.len()), (2, 3));
    assert!(!settings.serve_peers && settings.peers == 0);

    let skip = Overrides { skip_port_verification: true, ..Overrides::default() };
    let settings = machine.resolve_with(&[], &skip).unwrap().reachability;
    assert_eq!(settings.verification, Verification::Skipped);
    let development = Overrides { development: true, ..skip };
    let settings = machine.resolve_with(&[], &development).unwrap().reachability;
    assert_eq!(settings.verification, Verification::Development);
    assert!(settings.public_ip_sources.is_empty(), "nobody is asked in development");
}

#[test]
fn a_quorum_has_to_be_one_that_can_be_reached() {
    let machine = Machine::new();
    let with = |quorum, peers| {
        machine.resolve(&[
            ("GOLEM_PROVIDER_PORT_CHECK_QUORUM", quorum),
            ("GOLEM_PROVIDER_PORT_CHECK_PEERS", peers),
        ])
    };
    assert_eq!(with("2", "0").unwrap().reachability.quorum, PortQuorum::AtLeast(2));
    assert_eq!(with("3", "1").unwrap().reachability.quorum, PortQuorum::AtLeast(3));
    for (quorum, peers) in [("3", "0"), ("0", "0"), ("most", "0"), ("-1", "0")] {
        let problems = with(quorum, peers).unwrap_err().problems;
        assert!(
            problems.len() == 1 && problems[0].contains("GOLEM_PROVIDER_PORT_CHECK_QUORUM"),
            "{problems:?}"
        );
    }
}
