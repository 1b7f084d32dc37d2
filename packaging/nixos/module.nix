# SPDX-License-Identifier: GPL-2.0-or-later
# For NixOS: services.ksmbd-notifyd.enable has ksmbd notify, with a kernel of a series that kernel/ has:
#   boot.kernelPackages = pkgs.linuxPackages_6_12;
#   imports = [ /path/of/the/source/packaging/nixos/module.nix ];
# ksmbd itself, its shares and users, are set up as without this. Not tried on NixOS yet.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.ksmbd-notifyd;
  version = "1.0.0";
  src = lib.cleanSource ../..;

  daemon = (pkgs.buildGo126Module or pkgs.buildGoModule) {
    pname = "ksmbd-notifyd";
    inherit version src;
    vendorHash = cfg.vendorHash;
    subPackages = [ "cmd/ksmbd-notifyd" ];
    tags = [ "nethttpomithttp2" ];
    ldflags = [ "-s" "-w" "-X main.version=${version}" ];
    postInstall = ''
      install -Dm644 packaging/ksmbd-notifyd.8 -t $out/share/man/man8
      install -Dm644 packaging/completions/bash $out/share/bash-completion/completions/ksmbd-notifyd
      install -Dm644 packaging/completions/fish $out/share/fish/vendor_completions.d/ksmbd-notifyd.fish
      install -Dm644 packaging/completions/zsh $out/share/zsh/site-functions/_ksmbd-notifyd
    '';
  };

  kernel = config.boot.kernelPackages.kernel;
  module = pkgs.stdenv.mkDerivation {
    pname = "ksmbd-notify";
    version = "${version}-${kernel.version}";
    inherit src;
    nativeBuildInputs = kernel.moduleBuildDependencies;
    postPatch = "patchShebangs kernel";
    buildPhase = ''
      VERSION=${version} kernel/build.sh ${kernel.dev}/lib/modules/${kernel.modDirVersion}/build ${kernel.src} out
    '';
    installPhase = ''
      install -D out/ksmbd.ko $out/lib/modules/${kernel.modDirVersion}/updates/ksmbd.ko
    '';
  };
in
{
  options.services.ksmbd-notifyd = {
    enable = lib.mkEnableOption "change notifications for the clients of ksmbd";
    vendorHash = lib.mkOption {
      type = lib.types.str;
      default = lib.fakeHash;
      description = "Hash of the Go modules of this version; the first build says what it is.";
    };
    settings = lib.mkOption {
      type = lib.types.lines;
      default = "";
      description = "What is in /etc/ksmbd/ksmbd-notifyd.conf.";
    };
  };

  config = lib.mkIf cfg.enable {
    boot.extraModulePackages = [ module ];
    boot.kernel.sysctl."fs.fanotify.max_queued_events" = 131072;
    boot.kernel.sysctl."fs.fanotify.max_user_groups" = 1024;
    environment.systemPackages = [ daemon ];
    environment.etc."ksmbd/ksmbd-notifyd.conf".text = cfg.settings;
    systemd.packages = [
      # Nothing that a unit names is in /usr here. Metrics: systemd.services.ksmbd-notifyd-metrics.wantedBy = [ "ksmbd-notifyd.service" ];
      (pkgs.runCommand "ksmbd-notifyd-units" { } ''
        mkdir -p $out/lib/systemd/system
        cp ${src}/packaging/*.service $out/lib/systemd/system
        sed -i "s#/usr/sbin/#${daemon}/bin/#; s#=kill #=${pkgs.coreutils}/bin/kill #" $out/lib/systemd/system/*.service
      '')
    ];
    systemd.services.ksmbd-notifyd = {
      wantedBy = [ "multi-user.target" ];
      reloadTriggers = [ config.environment.etc."ksmbd/ksmbd-notifyd.conf".source ];
    };
  };
}
