{
  description = "oncache: a container overlay network with a cache-based eBPF fast path";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      # One nixpkgs a system, and from it the packages by the overlay: what users of the overlay get.
      eachSystem =
        outputsOf:
        lib.genAttrs systems (system: outputsOf nixpkgs.legacyPackages.${system});
      packagesOf =
        pkgs:
        let
          oncache-ebpf = pkgs.callPackage ./nixos/ebpf.nix { };
        in
        {
          inherit oncache-ebpf;
          oncache = pkgs.callPackage ./nixos/package.nix { inherit oncache-ebpf; };
        };
    in
    {
      overlays.default = final: _prev: packagesOf final;

      packages = eachSystem (
        pkgs:
        let
          ours = packagesOf pkgs;
        in
        ours // { default = ours.oncache; }
      );

      nixosModules.default = import ./nixos/module.nix {
        oncachePackage = pkgs: (packagesOf pkgs).oncache;
      };

      checks = eachSystem (
        pkgs:
        let
          ours = packagesOf pkgs;
        in
        {
          inherit (ours) oncache oncache-ebpf;
        }
        // import ./nixos/checks.nix {
          inherit pkgs;
          inherit (ours) oncache;
        }
        // import ./nixos/tests.nix {
          inherit pkgs;
          module = self.nixosModules.default;
        }
      );

      devShells = eachSystem (pkgs: {
        default = pkgs.callPackage ./nixos/shell.nix { };
      });

      apps = eachSystem (
        pkgs:
        import ./nixos/apps.nix {
          inherit pkgs;
          inherit (packagesOf pkgs) oncache;
          scenarios = import ./nixos/tests.nix {
            inherit pkgs;
            module = self.nixosModules.default;
          };
        }
      );

      formatter = eachSystem (pkgs: pkgs.nixfmt-tree);
    };
}
