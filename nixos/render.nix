# Writes units as nixpkgs does (nixos/lib/systemd-lib.nix), and TOML. Builtins only.
let
  # A list in [Service] is a line each, one in [Unit] or [Install] names other units and is one line.
  value = v: if v == true then "true" else if v == false then "false" else toString v;
  line = name: v: "${name}=${value v}\n";
  section =
    name: settings:
    let
      setting =
        key:
        let
          v = settings.${key};
        in
        if !builtins.isList v then
          line key v
        else if name == "Unit" || name == "Install" then
          line key (builtins.concatStringsSep " " v)
        else
          builtins.concatStringsSep "" (map (line key) v);
    in
    "[${name}]\n" + builtins.concatStringsSep "" (map setting (builtins.attrNames settings));
  order = [
    "Unit"
    "Match"
    "Link"
    "Network"
    "Service"
    "Install"
  ];
in
{
  # Attribute set of sections -> text, the sections in systemd's usual order.
  unit =
    sections:
    builtins.concatStringsSep "\n" (
      map (name: section name sections.${name}) (builtins.filter (name: sections ? ${name}) order)
    );

  # Tables of strings, numbers, booleans and lists of those, and arrays of such tables: what
  # oncache's configuration is made of.
  toml =
    tables:
    let
      # What JSON takes for a string, number, boolean or list of them, TOML takes too.
      keys =
        table:
        builtins.concatStringsSep "" (
          map (key: "${key} = ${builtins.toJSON table.${key}}\n") (builtins.attrNames table)
        );
      table =
        name:
        let
          content = tables.${name};
        in
        if builtins.isList content then
          map (entry: "[[${name}]]\n" + keys entry) content
        else
          [ ("[${name}]\n" + keys content) ];
    in
    builtins.concatStringsSep "\n" (builtins.concatMap table (builtins.attrNames tables));
}
