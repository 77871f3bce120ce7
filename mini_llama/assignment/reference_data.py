"""Compressed outputs of the real stories42M.pt; reference_outputs.py unpacks and explains them.

Written by tests/assignment/pack_reference_outputs.py.
"""

# Editions that share labels → the labels of all data sets, one byte each.
LABELS = {
    ("fall2024", "spring2025"): """
c-nPW31TBL2;=(yn`<P2XOgtrZRW5s2q8$ArJLvZFmpebem?b^d2Tby`|~XDUfOG{&inr9yIzTX=LRd=npe%8-W0Eri>oiN-
?hf(zUTu@>O3xs<E!iC?uz~!^Q6s0-$!4;RJ+p)V8_N)8VT>;<4YJE%*Z@D2?j2L3;S<wl#Kf<Dw@R2*{ld@-w=KhANbR+5O
*qs2#Zt#l3<0f3PyE|7Ln-_&eLK%@aRM;e8YXR(a@&x89d2H1OpO%N<CJrf|mP&c?j7-{t0WN$@5P*?LOE5W6W>)pgxEzTNQ
0=01%QE6N$--Xm?zMJQ=}t620Zy{4`koQDH)eys=@|@|u4O{{v}PM!*7FmK_rb_&|DcU;BOCHn=!+N{5#M6t;WK@hL)96OIy
0oEJ(Q+=h?U8;ve0w?<ASFeT|a)mTb67*>s)ad&CS9QJj=3;Yu!&a)tM2v-o403=OkxD{D&NggAV=0a#&+(f(bYD0D#K^bb>
W}+i4c!whHJW*CMP!Vtek`gw>-TW6zQ=o=8490W>L5^fw7ZAut6S|AEy-!I-Icp3`)#>upK%3eyA50U(B&3R`X>b^dcXj3SV
8%_PM4yS8?i^4J5K9|NJ`3uGmGsCdLXAZ40?ODy1|=awOrlqetLak7F4qiFT?JthUwjrd3N^$GCOL<~rzIfUN1?1o3_?6O9)
xa<s8}ldXL+AZ)hC&cxAYAn)g{nb4tP>2IzzqjY)DK8x^Snk1T>Pa!o|_;rCN@vJz|-Q6gMQZeDV({n76diYa8WY3yDjL(Gd
@dmg<h2Olg3i19?Md!%R+Z8+$AQvF)}!saJqs;uLumOm{W(krJXTHW=)=ojGn}7>4z6f+b;k`Z1BQg>PI?(xEKD>N`ym0af~
A2G~l6Xa;K72I!o;gi{j1<nA&QDHms^qq8NJq$N|NRS|+wAwGjGVH2rEjqf#sNlGoc5(|PdQ7MPxd4#IKHbqoASCdDhxu9_%
N(g#N1?d;KI9gB1=;~HONS++FeGU@<b#*<5AGIB6`;#rDXIR+o-LO^6q*N|>8(>QuWG9ejb*h4MPL9&|7<4iv-lKIO?c(FGG
^fr~QMuTq1VOD()z1E(Dx9XXi+E|ni93<pbB+fTh<uEMB95<SRi`4RzmQYqI~paDf}*Gqcw|KeG{NmqB}qNlbljz2`_k>z;>
H-qH0C-V!?CMPPN8V-YQw6R`6;DZYK04Q{G@d3SZ7Qs`%JtlkdTyGsK;$(u0}Z%Bh)R`kwe;-TgFU%#w^xkZoU)X{l)+ahF{
IlAmesvVrl|0b9AxbL^?f9j<7=m;hPGurho1<9y0~cTmUTq?{kn<#a?mqk47?6-SexA-M#N8{(1ee`c8`v!>_&9n%OUFwhmu
Q5C84A4>Q8v?@wC@?`8J2-G02jFYN8sCiv>)=Q%IzJ`CB{srC<^%de*y`$X_N1^;BpeuZprFzv_9enY(-`teoZZQh<By&Rv`
eog$7h9$mDv3;!j3Q7<D0LzyTSp
""",
    ("fall2025", "mmia"): """
c-oCui((rw2$Kc>|IIT<*mr5Rwd<OD*cgNmgj^A^B3EGTALu`bRd4oP)Vq2W^_zO%kFp=1A9#`eWUZuD^xxbD`x;{aAN$~ic
N4rIwUUVUY4x$KBKTOm$o-H&MOAh}t0siAXaU@jHUQKiK}PS~kM|yI%g3xd<_$Q4dA!;1#T*jt>+16Zd3_JZH5=>rXpjQNgG
RYNIZGR|wz{&;DL)!tE)EFVj*6r5*7;k5_@E5A2rO9)_yuuRlWR`uFlbk!E*tH7*)i|?9hV|>YC@ikxjqFUD@ldd4`es%p(1
I%KriSu+e4O*G3b@=(CPh)Wdmut(gC%l>zD9GJ6=>wj&uF=q_xhW8G~k4;E-)jy%&8*Imeio9a%VDUf$*KuvymxG@jbqMFr|
snac3~w2Mu3m0_G>U}Jz&dxf~587gAw#{Y(CNOIzaGoKy5=-1&fQovHIrgF#z95P=XAw@8(3$1|XxVcU(_Rg+PD&<ioDzCe$
x)wm=7CZtV;yK1_7dd8zyC<=c7oUzOE0=|uiLwUOkmGr48(l(Us`mSnUB|ebCAxrv<72A=4Kg~=n6u=P8B(qyluI*&R>@HW`
eCEd<tOy0f+Ecs#aD6`qd%3=(w0U9%k?xx2MaB%4r$l1hDZB|u#&Z(OUW_J*24(%2kp3B7Xh-wbmbB0&VVdtEeD59`wn@;lN
=t#h+YFP5c1V>X!_`?dHU!{7(QTx;2@xfkQa)-W#-h@1mACl!N6659WT{Grp*|60V>@XhPvWZS(#pBw^EKgWQC`}(LE2=aPz
yo?95t6GYUW3BXE{0P?>_1w{p+`SA?_4>BFhhM~lsAp4(okdqq4uwJy?{*LPg*YW6oHMnM*xPu=Bh9X&I+RWvgr9Y>gcYr5b
?#th;a0ifPW^W2?oWU*D2SZ5?4o~q7C7G}<A(5F#IMGnz(vfezbj?+bm0mJ=>`P3VF2-sHH<ekRZltW8L;YHrrhke9wZ$$VE
R*MhL?0K!w@BNLjz>7iKV}V3IHG)XjLTPF&ONGtwatEEuo%W!l4&qfzFs`VWVZkDD$1-|i8AVqoIE|%2H$|`1A3@#_igJNNx
tP)z%|gS=J3EfDozW!26`43Rg2xvKq!`%=_vt0V@+7-1ZyRh7Vz?#^IYZnjBY2+3o>|-kL0+N1wHCv3s0bSJ_WCL~Ey(IKrd
9{y2~XVQy2N;W4zzizU5!*3xTCZt5FVwPcf_rl<v|fQ-FNcBnFU9vZ<|e{=!G+s&Io&w4a5ww=Fk8f%h@=?W<9a$M9lXEtoK
)y_qP`O_!fiLHw=7y=lF5`di=2-A2vQu!Z&O46nJ_GtbhKD?Bj>0_-1|mKbrN$Exb>=vEio~`~~q}p87iP%O-q%gWshZ>)*~
jLw)36t?zue=J7S%_)XaOOedZs`0IW@_yf)=6w3
""",
    ("spring2026",): """
c-n1N34-G=2ouNu-@M@v;Lc{IP3o9a0;~%C{>@<k^!u2^EtVA)uQcDOS}b{N`EJOogmZ6y_s&$Iy6@$aj0c3eP>{P~kDz6dZ
$mdVrtG&G9@QWEF0CHvPly>;O476(ECt`k`24w|Z5VVMlA(#VSumu?K$wpuQ3|wD%WcLV(DI);5#D`vox1v#ckhMBucdy=Y?
lsCH!}~VC|0cm(aB~0SF;9oj1^MC241Rd>ELD?(f1r#waI+pFu9ntq`a?n22zjKkAh>kF$N*6)e6K(m2s~3bd>SaGhfCqn}s
;LV}lqal$s{t;{b|b?K;T^M!M-}_abK?_pa;YYyqX?4eg!8Epyw2xo_Yi`g$M4s|r*MOspzzFxS9*62)|;$RHF8Z0tJL875X
lUP_ORIVq+SZGAajO`~mo8zl?ElS%ck9`cK5U;u(uV?dRhV$)~$M<Wik(|9JEvVMK#<i{Fo?j}shP0Lb^|D`m!)hVdfHH|=@
9`%%=sji@OO;p8bw$jahnemIE4*{*q{;7(|39Wh;oUwscZVvyaU6Jl2c9ns(4~^uf!HZbm-6qRHCI@cR=wRD1hu%i6XaWebE
I|Z<>EEi$)YP})9rw}CmOZAt>f{i;Vc4X&ZQci!=>UiKr@|k^4O<kq;JPe;pJ}I=7ISP?rXksxVGj+_Bdxnw&@{<`msU%JaU
DMu-x<w0h@DPn@{xg4c$q}g?b)s~k75E$Vj4n-`Z4LpbQBD+wg{to&MC4jbnkTFq^@kZV*GKMW<PRH5Q8@To(W4tFib>Elx^
p|Ejyv0s_Jz4L!lsQ4`j|TnQs0JBud_fqBE7X>dACs#*k_}9R>=~I$fi@P{GVBoc?t-oe+jvg6Vtp^guR6+Xz;~oDptsf$(z
t!dio7DS8BQZov*dr`ugW{Fdk)sbDKxB62>x)3<BPvfTrI^_OH;SL>7%u+uaM7O^qq`Q^IJ987<5s<drS?-4aD`91A4aDEKy
)ADX7tG>KIE2rBY_|S)d;f=Ggu&!l0e<_k3yudjPod}#H9JU7~#tXkEprU|qC(ZmRtv)HspzrLbaKRqX&_`C=aW|zq4Nw<ig
WrP$&glq0O){rVwWqnT_xy*{H@L#heAQpv464YDQO5FYk^eqCSBjK4UZ2q3;AcO6y&uiTW3=F3i}+RZxPs%=1dbp3n20)^==
|V+L7tT3W_%MRzxly|0t?FS1mwTL9nsh8_dW230Qdvk`}6>fmj;g^td-xOUpIcz`l=X6aYDY(<NvtIKe(6^d;
""",
}
# Edition → number of runs that gave exactly these labels, by data set.
LABEL_RUNS = {
    "fall2024": (19, 19, 32, 32),
    "fall2025": (7, 7, 9, 9),
    "mmia": (7, 7, 9, 9),
    "spring2025": (19, 19, 32, 32),
    "spring2026": (4, 4, 5, 4),
}
# Edition → text at temperature 0, including the prompt.
TEXTS = {
    "fall2024": """
c-noCy-ox%41{~0Vmg}DJ_kP?6x8NyF42W}<s`ex+n*D}N;EW%G<N12`x$|D!9lqSqbiCBYKX;)#gxSGr3S(gVv+@v8L@&R=
g09B+BS{3u6Py74R0d5lm%O&9`n^*1VK#kq9NlWUTzDfxfiCs;%UIkIe)|&F!9=PAzQ!}_t9}GnKtJS&-5dj>i3HG#w<DY1(
Qa`9yn=ZT#QPXkU)%2)0^b^->v5^gT0G&6yo(^h8z;*t7~JxXG_pFu0wSuOR?4@!_1BB+(13RIGW$DdjuB}|2q8b|NG@^&Qx
tHcND*pzW
""",
    "fall2025": """
c-mEvy>7!W41{0hwl0RBqd!|abY?;}BCL=GCEM`ZS5knWT_}L0?z`g~677P6tO}z#iU?}b(n@H~68P}|;YgZg0vSUqSlM3sQ
)pdXt<LxmvJIaiyOarQrc>?KR0K)F@$Sj+t=DD35O0O)oblS><+*=oO&EATaiy5Rp?jY+Dur*2-!=228SeKPUmLSnJ|_$s1v
kUlH^w!nqyb69xP&ia<A0MLSvq@{I8lhl-ePhLnYPbvg5q~+cDuK5yFJC)tuBIfGc8H@Z@W}Fp*CW4gP@%Mg?#`$TJ0Xz@Vl
1B`K_HV8hFILk=idIhmo)
""",
    "mmia": """
c-mc%K~BXm3`F;wVh-@tW3WPE0b=haZW}dqQ0)BD+vB$47g$6}GBeMUe57Ed;<=K{ENYzO2EtaFjL?u+EUBUN%Bmc(CY#VCl
snht7MmE#p|UB;fSd-tL0bsSQIP~BX(8LK1h<j3${=SgeRkeZ%W^=P%u-hA@G6W*+tp%BH6u{o?Jq5CSV?{5d58LhJ-wC^wZ
q%Kbv2iAsDnRE%fdGK$>kO!OLq3bQCg4iRZAlLBS0%{-8D-CRiFK%P7dsz-aRP%WoOrix36?RK?4O3{d(GC&eiiI-_SRM`rX
W*hT25_)&0|Q4+d)EWZ(Qnpk@
""",
    "spring2025": """
c-noCy-ox%41{~0Vmg}DJ_kP?6x8NyF42W}<s`ex+n*D}N;EW%G<N12`x$|D!9lqSqbiCBYKX;)#gxSGr3S(gVv+@v8L@&R=
g09B+BS{3u6Py74R0d5lm%O&9`n^*1VK#kq9NlWUTzDfxfiCs;%UIkIe)|&F!9=PAzQ!}_t9}GnKtJS&-5dj>i3HG#w<DY1(
Qa`9yn=ZT#QPXkU)%2)0^b^->v5^gT0G&6yo(^h8z;*t7~JxXG_pFu0wSuOR?4@!_1BB+(13RIGW$DdjuB}|2q8b|NG@^&Qx
tHcND*pzW
""",
    "spring2026": """
c-lpfF;c}a3`F~XitT7Jxrd=(hK5?PMIvJ4jP3l8+ao0fjim9co_7_n(35eHc24L8jTwEBW~EBbT=7*Z2*)Cs2aqO6N0Ov3-
WqLN5$z-1m~_Vn^OM_vEz>DF8-=lOEqE=9;#1-};DR%LO6%a?DE$`Rl{x~9QPJoaAMeUYbPfoSGyOMn-0-~{fu^!|cRm-`)F
koc(jAy<Rudb_B1|$5Xp!oPROS((UzE9)Bm3vRHBnt{zJms=%7^E59r;O^Eb3+AdUKlH&Bc|}w&My>_b@&}JYo9Qc9Z-8HqC
so
""",
}
# Edition → number of runs that gave exactly this text.
TEXT_RUNS = {
    "fall2024": 39,
    "fall2025": 8,
    "mmia": 1,
    "spring2025": 39,
    "spring2026": 6,
}
# SHA-256 of the sentences with their questions, one per line.
SENTENCES = {
    "sst-dev": "9654895733142a93625da7022c5403a965a3a3133d91cb5d4f5a62384d5a6e1e",
    "sst-test": "82471796634a48995c3602748bddb30f22b33b65493155b75f08abb75a1e0407",
    "cfimdb-dev": "0f1bd4067702ad6dcbb333aa0a089d9619a49db8c27b29f85e895faaf0547f92",
    "cfimdb-test": "5c788a59b697509d85e0b39db43435472e8551fd0ffa5c5bc4e4b2363bb8708b",
}
# Token count of each of them, including BOS: all low bytes, then all high bytes.
TOKENS = {
    "sst-dev": """
c-rmK%X+Ie6b0bEL=zj35E7Em{Q{N%gD==goRjqQ>!|PlCiO#fn18$`d#%l|1&)EsmX4=9(|*&_u@`D7mKNc3l@4F>J#F4$v
UUXaS73#sbP+<tDYiaprkJ)~boE;=T)m1TX|8Fq_j_m!HBs@FczwKe-;_oQOl<nb7vMv}*u@?PlHP=&2jaW59?0BOc;m5jQd
Ls3Ya_f3W4^YAWqX8=_pC-YNiz%=hjG^p3#feG=N7w|`sxtVS(*}3YF_8lRXmd6<DmVj%Iqbyla@V;NQ_Pb*tyx(Y%1Y`mZ9
NfYtuk+tLW|D8(6R}k-H2F<}UP<9YupdyaaQQYF`^CWT=Ay6Q>Neq#0az^ZVDl42)HRat+&SHftt0=8OPmqW%@AVunqpDdwW
RM>R4Gin$t58jL*Ox66rpCtlWrHs88KQRW?rbgqw`vZNQKmPGPqJDOFjl=Id0=A|T<Lca+3%!I~j9gUjJ_z~pi)GhSrr~n*F
)V3W*01T-Ho^;RcSU4+pMClTf>TI#!&n$Ka$7D>j?y*o@-~LYh4W^N26WXQ`&1cUZRYyV;l^Esv6+UZQfsf{Nhn4{-L~fo}I
dU%8-qpGx6k=PbjfMMrr`^!pNqh;U3vP}JleMwR&vdR7X0FD@8c>@4(Cqg6^2LjoXB<Ul1$k3n=nj;;2pe1etiE!uw5!W|m=
<T`Tfw=2V_`x>v@PXB5*7G1j2^K)lD*wH(Z8nbOiGMA91jm$pPP=iOEpc#4qr&*LMOV$>+u__L5Tu+QXMvwPo%s4lG{ac*3i
0ukqh5CN75|OO|<56VpA$^0GF#uXFu1%|JBDzo1;FR?C;X;fZl{>F5ON0ZqB&WmN0Prg1IbQp96sLYM!&|*4EKLq$dnXEiQh
kx;CPPRBjJ>>PFt|A{n-Cfw-I9%t}7?40Ap|-z9XvVYDB0NTV$e$rv;ae3U+)%&0P}vpz7{F8&}VGVA+Te<~hkS0kVPe4$1~
X{J76^t!7FdOvrn5qq&htWFQw7|<t+A+5VzyYhduXj<u7s6l~c4vTk1^gi2(rSXp+KYsl9Kl}&s-NCy
""",
    "sst-test": """
c-rliM{?yl7DRg!Ur&z)AV7EzlAtG_kt<b6Wuo1z_rHwhGX6kk3`AVy%}kWaH$b|aV9_#UL1{6%7%Q;SK9Z1MSK8RmKy)OEk
JO_(A_`5rA(d=fl$x$|Hnu0|YiGMwdCB)E-{42Ovlu2|1&!~$Vpn^u-pG?Q*Q~*#Uf;a(XKSybuK_B#3QJIP)olX%)N$Wr<F
2&o|J9a%cA>^mDe81d>t+}ASqL}^)z7)vbH{xSv=4e6Q;Z#{x&6@xTiGkWmU@O!oGwe9&})9o-9Q$mP<>=jtSYbZEliCgWTp
I8pDt$aHS;%lu`k`2S>bM73)t58MD;2!cxZGi^w_lS*%{8yhTR>@_3ATAswxLHNdY0zQdgOMmIG_PwV(r^RaQq=z5M7{*o%V
Qhbu5wmQS=ej-Bnm)It`b%ec=T(*iu^lN~-Si!MwMn>=_ty~!nbNw*;kdUif`dR8(t9hpX=%+uUKY4S9;0~zbcGMllXkL^t3
v&M;L(AMyUCdVCpmd8?hE*pMxa+G23Xt(|{CXjh+)^pL!P8v5@aJ-Q|$mhB)TFN>nI%EFQH2E$o<r>!Od&oJbD`Zni1AuMkF
ZTMTxzM66hr<r}MaN4OUIJ`pFZ@ygqg*C%F<n9@(1Qup{NpYXo6|rJ#Sud<+CDrmBF9%c)MGc8YS9>-jg=KX*E8_TPG{6qM8
chiaq#;}#AM%_sw2%-$BL`Cy#x<cks&V?OA~B0kJJbQ?=^vf%4WEw{eAC<J4}R=ytbzKX65vhPaBp7RVQ0Se%zGGE6hd4irX
#8Ky3*cDzMS*XoVeZgAucC7k&o1W>)GA%32hWbsMn#C4W_h{d_KsL4;2MHSg{D0X?8qt5apyagLddO-?HQSj_vVW~mCDps1X
<x)<M+BHu^u!j?9a*7IRzy%rSa{RdNA!}u<;CR^@_Rdz!4FtsX$+id1&>4s~e90BOg(FgXy?nUCiX5IMThm8jmpua7K4akOw
{UH4ZiO^NG^a;P<ENjqU-uM$o6=Vq(OZgECM~lz!$W$gaBkMLlLjWIe*D~BqyzmOfE$*CO#xXb-n|9OfCAC)~`UPb&!<^<i+
uFKscn{F_)1Vz1#$s>mp6!%Dd&tBFXU`Jiri_l$iU!?zBihM=-^MK_pDR_0bE;f2`O3gBHMi44h^xD*;w~K?!?e>T$WxJ|Zj
2PmSflBRN?V6%YU<@rQ(SKCs2%ZZ`A_=3_<FdeYL9N0VO3&1(s)vPu}^uYvo_+*7?>|~#p^Jt^E=6&mL*>1v7?nk-%x#*|5*
Vj3-*K~WR0)o1za?5!A>jBKckqFtwOQ&1{XPw9*Q)$=fh1}H@HUl%943?pOwg$1r=?$1w=f>O?cN(#}3eoLO`q~mUZ6AzA(Q
NC~uD!gFrsEHT`}i5IAb8cvSbl8S&?`m$tR{x$E2imgmQ_AWvDw?nehk6F&!tEgsXdWsa}nPl6H?=$$R=6qV2sh=^tijvn(B
D0|CpB{fG0W#12{*!L1V6G{pK9#u15JjtJ!wEbGU(s&Bkeyp(<RZaRsxoLe1#Mt}y6m{D>{(>>>E;L6%Glo(d_I3El8v6KHW
<+B}ZjD~sZn|LF&I2J<9=)(nnhzxcbed#^@`@jA>bssDiL00PVpnio3H<IkA`KhF>HNytVk=LUXz**GWE9nv8Sq1FLL=z(5f
#7MRYfYUysZ{taT;sr^D<0)k%9?W;O_X|Q~^#hRJ89IzHK1yBkI%uk+>dl`_y9=B66KD_p%Ph8kp+8&F)3+TOpBq+@u>y5AX
6fiRytUo%EG0@sIun^3^UCQ^c%V4_gXhgdV%2ZJ#^sO;#C4b&PEB_L#1<Z$K7@NzI$iD=G%~&NM1k98v@zJoXniRb^snk5km
@uH_jl!(->Dn}Sr?lL*C;10QIW^?Imn>pi!Y&cT{uAE&|u`OI}`98syAKtNDD>%yAeQyr#u6(JIH$9c41OL%$hU4E*%)Jb&a
W7ZiyB01E_KBtl<VajI)h-R`2u7wSRg@>axYaHbn9nSw13UV~+1y1fJ4juH*-YRTe@jXY3s*Ujf@r5@&mabB#64Sc=#}{9G@
x>QkeDTHKj{gHR$%9n
""",
    "cfimdb-dev": """
c-ourhWFc#sm~Z+N=!V&UH$an>u>AxRyW^}P?;idZ2Nw(7{+eXb2nx_){#D<>M?oS_U~J+y`B`f_``|)lO&#P**)*k&K-OeV
&YeM86!%LuPJ`<MDqA8V`06e-*k_ee%U-d;A5ClP2K{|NYkUsGdHbW!lAeO!iQB44%L5aw3O^Vc=Y)5>78lEZ}IH9Uuv`A&e
3F5d5uelG(2u@W|{GeXKCR&uHR3#vXo9(_$9tS_}ZP1apD3>x=jf)BN`6oHQzJ36hEVM^|$IJx7Iz|`C`j&#?ZY7F0T5YA?G
r8p~zGJl{zss1$U=amVTPhvNZ6}Jxk$8maDHCtHg`r85kHDfPfJQ7#P89Mi2t?!NM?km=FU@86zV^EkuTq0m_BRKov6}42Br
PfDmRt=0Nm70K`<Na;SS4;Le0P0^&+I4`w^eVT=q+FxNwz$N=*a10w)6>V<s
""",
    "cfimdb-test": """
c-nJfTJ~@E!Nd1H$}C#lR^!c+ti58*UFM>>9Va&IQ9ho#V(QjfFSdIt1nus9IP~yhedpK3cd}0jZT~z+?!_KW)<bJISv8afc
~A9zpziuhwn}ov*FWp7MYWfDS$8MD>ou=oh-6rs_Qi3p-;cc&6OT?lu}9|d%BJX(M-Tr#Jxj`o`|#DpcjHx8HVLP0ng1*y=J
NIY>(87XEVA}pp!7a@)gh&;+jrb`KE@XtGx5Qiqi27{sBM^N5&Y$L&HEF~ff-*<H}IW({q2$GA-|hf1@7Iu=;Ia7{d3x<1I6
d}AAYv>XIah1evP{;PBA9T-Ly0R|52emvMW~xHgVqMzO?m@{IqlZwHe=*l^^)oDwn^g=5+Y_lka{u@$BZ3NqH)I{rEnG3wwD
snPqBEn6vw3_@+y{m98w_p!np_{qO7MXXaXZ@4a~DK%xy_b;y+CiT6HFh)Jq2ZxZ9(dO$qx(8IT<t8|_h=ggR%x%ivZ(+i<1
h3-$CvR@~YW%-@QTV*fkHbf^}eK3pV^`uR4M|Pgv{hR-;@VvFJ*DTP#bNaFDdMSm=Gyi_-KG%Bg)3Oa!@6L7~$-VvQU;b_96
PIJ|e3UwRQak3=IUiON4Q{hXDjXVHJX&G}xUSAQyN7Al#dnphhqhg2YI`BIe%I2Y4)=}~>}=e6^TOHPXBik785kLWfDw!t86
h;33zh&0F(R?CsbvJ40~G+Xz?v8lLJV-N5Tjsf;3mNoF(MR!^)kXOM|LaRat2iAGcY17g4zi+1>!KMJ#eE?tzks?18N7{7)H
2h2xlTf2J9JRF2a{^JurtdA_*b_0@)8pVUKVlTn*G3Mi^#bL<<ZgXTywU001@+6ny
""",
}
