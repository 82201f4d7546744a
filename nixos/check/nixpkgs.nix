# A stand-in for the flake's input, around nixpkgs' `lib`: packages that are made but never built. Every
# attribute of a package that the expressions read is there, or the evaluation ends.
{
  outputs =
    { self }:
    let
      # Its filesets need builtins.readFileType, which Nix before 2.14 has not (Debian 12: 2.8): here they
      # are the files' names, each of which must be there.
      lib = import ./lib // {
        fileset = {
          unions = map (path: if builtins.pathExists path then path else throw "no file ${toString path}");
          toSource =
            { root, fileset }: builtins.seq (builtins.deepSeq (map toString fileset) null) (toString root);
        };
      };
      system = "x86_64-linux";
      # What builders make: a derivation of the arguments' names.
      make =
        args:
        let
          name = args.name or "${args.pname}-${args.version}";
          drv = derivation {
            inherit name system;
            builder = "/bin/false";
            # Evaluates what the real builder would use.
            used = builtins.toJSON (
              removeAttrs args [
                "meta"
                "passthru"
                "src"
                "nativeBuildInputs"
                "buildInputs"
              ]
            );
            inputs = (args.nativeBuildInputs or [ ]) ++ (args.buildInputs or [ ]);
            src = args.src or "";
          };
        in
        drv
        // (args.passthru or { })
        // {
          inherit name;
          meta = args.meta or { };
          overrideAttrs =
            change:
            make (
              args
              // (
                if lib.isFunction change then
                  change (args // { nativeBuildInputs = args.nativeBuildInputs or [ ]; })
                else
                  change
              )
            );
        };
      tool = name: make { inherit name; };
      tools = lib.genAttrs [
        "bpf-linker"
        "bpftools"
        "cargo"
        "clippy"
        "conntrack-tools"
        "ethtool"
        "installShellFiles"
        "iperf3"
        "iproute2"
        "iputils"
        "makeBinaryWrapper"
        "nftables"
        "nix"
        "nixfmt-tree"
        "procps"
        "python3Minimal"
        "rustc"
        "rustfmt"
        "tcpdump"
      ] tool;
      pkgs = tools // {
        inherit lib;
        stdenv = {
          mkDerivation = make;
          buildPlatform.canExecute = _: true;
          hostPlatform = { };
        };
        rustPlatform = {
          buildRustPackage = make;
          importCargoLock = { lockFile }: builtins.seq (lib.importTOML lockFile) (tool "cargo-deps");
          cargoSetupHook = tool "cargo-setup-hook";
        };
        callPackage = lib.callPackageWith pkgs;
        mkShell = args: make ({ name = "shell"; } // args);
        writeShellApplication =
          args:
          make {
            inherit (args) name text;
            meta.mainProgram = args.name;
            nativeBuildInputs = args.runtimeInputs or [ ];
          };
        writeScriptBin = name: text: make { inherit name text; };
        testers.runNixOSTest =
          test:
          make {
            inherit (test) name testScript;
            machines = lib.attrNames test.nodes;
            passthru.driver = tool "${test.name}-driver";
          };
      };
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (_: pkgs);
    };
}
